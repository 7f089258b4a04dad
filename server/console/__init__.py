"""The web page at `/`: HTML, CSS and ES modules as they are served, and `fetch.py` for what others wrote.

Nothing is built at run time, and nothing is asked of other servers. server/routes/console.py serves it.
"""
