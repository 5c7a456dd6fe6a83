"""One exchange's life, a file for each step: route, identify, admit, forward, tap, settle."""
