"""The pods of the steps, and the executor that starts them."""
