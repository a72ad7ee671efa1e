"""Side-by-side measurements: what `lookupvit bench SUITE` runs."""
