"""Translation between our parameters and Hugging Face's files."""
