"""The residual with its derivatives by all that is trained, as (Z, G), and products with them."""
