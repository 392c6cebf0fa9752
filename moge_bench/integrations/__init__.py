"""The group-sparse loss in models of other libraries."""
