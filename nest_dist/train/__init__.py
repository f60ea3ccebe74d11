"""What happens in and around a step."""
