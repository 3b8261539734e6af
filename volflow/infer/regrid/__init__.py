"""Networks over volumes of another spacing: seen on their grid, scores brought back."""
