"""Run layers in other orders and measure the effect on the output."""
