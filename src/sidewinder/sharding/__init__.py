"""Who owns what: shares, rules and slicing. Pure functions of configuration and group size."""
