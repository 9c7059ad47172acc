"""A scheduler in a web application: one module for each framework, which needs that framework.

``fastapi``, ``starlette``, ``litestar`` and ``aiohttp``. Each starts the scheduler with the application, lets its jobs end
before the application does, and gives the scheduler to whatever serves a request.
"""
