"""What evaluation is made of: held-out tasks and what a policy makes of them, the statistics, the page."""
