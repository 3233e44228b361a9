"""Speed side by side with what one would use instead. Results and machines: RESULTS.md."""
