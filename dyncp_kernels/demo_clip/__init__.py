"""A short noisy sample, its clean reference, and the script that makes both."""
