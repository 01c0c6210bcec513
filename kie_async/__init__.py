"""An asyncio client for the Kie.ai jobs API."""
