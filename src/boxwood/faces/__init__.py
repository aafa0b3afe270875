"""Other systems' documented Python surfaces over our own client: one package for each, named as the system is."""
