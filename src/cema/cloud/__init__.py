"""The cloud: a web process that takes samples and hands out updates, workers that adapt; they share only the store."""
