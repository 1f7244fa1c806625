"""Files by content: blobs and the manifests that name them."""
