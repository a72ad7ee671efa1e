"""Penn Treebank tokens, as caption metrics use them."""
