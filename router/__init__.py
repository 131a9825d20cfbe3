"""The front door: decides teacher, student or both, request by request, and logs what happened."""
