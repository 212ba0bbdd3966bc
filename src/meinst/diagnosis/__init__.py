"""Why average precision is lost: kinds of errors, what each costs, and a report with pictures."""
