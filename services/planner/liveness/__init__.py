"""What one decoder layer keeps alive, moment by moment, derived without torch."""
