"""What happens to pixels between camera and network."""
