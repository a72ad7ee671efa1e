"""`lookupvit sweep`: accuracy against cost at many compressed sizes."""
