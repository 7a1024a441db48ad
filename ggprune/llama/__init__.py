"""llama.cpp through llama-cpp-python: loading, decoding, watching graph nodes."""
