"""What things cost, always beside something plain that does the same: ratios carry, microseconds do not."""
