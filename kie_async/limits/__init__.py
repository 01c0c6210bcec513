"""Whether a request may leave now: rate, circuit breaker, budget. Knows no request, task or other wing."""
