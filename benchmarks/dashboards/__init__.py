"""Graduate's own services under a told story, a real Prometheus that scrapes them, and the dashboards' queries asked of it."""
