"""The Ollama Modelfile."""
