"""A local server of feature indexes: an API, routes that clients of Neuronpedia understand, and pages. It imports no torch."""
