"""What project quotas must do, as functions that guestchecks.py calls in a machine that has them."""
