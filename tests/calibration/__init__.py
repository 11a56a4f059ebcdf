"""Plans and thresholds found on samples."""
