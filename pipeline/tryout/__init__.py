"""A page on which a model is tried: pictures are dropped on it, and it shows what the model makes of them.

In reading order: address (where the page is), answers (what is said of a picture), page_server (the page, and the
requests that it makes). Starlette and uvicorn serve it, which MLflow brings anyway; gradio, which such pages are often
made with, would bring dozens of packages more.
"""
