"""The cloud: a web process that takes samples and hands out updates, and workers that adapt. They share only the store."""
