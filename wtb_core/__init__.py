"""WTB Serve's domain: batches of LangGraph workflow variants, without Ray and without HTTP."""
