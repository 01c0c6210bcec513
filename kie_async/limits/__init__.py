"""Whether a request may leave now: rate, circuit breaker, budget. Counts; knows no request, task or other wing."""
