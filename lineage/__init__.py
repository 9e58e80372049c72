"""The leaf of the house: strict sections, fingerprints, stamps, records and release bundles. Imports no other room."""
