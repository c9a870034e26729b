"""From search queries and the images they led to, to tables that image–text training reads."""
