"""The Hugging Face Hub: models, texts, cards, publishing."""
