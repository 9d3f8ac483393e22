"""Does caption quality make better dense features? The paper's question, asked with error bars."""
