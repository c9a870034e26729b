"""From search queries and the photos they led to, to tables that image–text training reads."""
