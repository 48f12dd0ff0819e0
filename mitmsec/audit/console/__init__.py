"""Where auditors review what was recorded: `mitmsec audit console`, a web application on this machine.

PURE: duty (who may do what), desk (cases), chart, marks, throttle · I/O: desk_store, web, pages
"""
