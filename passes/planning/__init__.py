"""Where tokens leave and how many stay: budgets, schedules, plans, the routes they take, the work they leave."""
