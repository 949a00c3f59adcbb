"""Readers of image folders, tables, annotations and Hugging Face datasets."""
