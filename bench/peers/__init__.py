"""What our users would pick instead, to be measured beside us."""
