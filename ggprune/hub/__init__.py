"""The Hugging Face Hub: addresses, downloads, and the connection that publishing uses too."""
