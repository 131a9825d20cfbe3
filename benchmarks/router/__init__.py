"""What the router costs: measured beside a bare proxy, a usual one, nginx and LiteLLM, against one upstream."""
