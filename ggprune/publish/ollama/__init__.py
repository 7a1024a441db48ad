"""The Ollama Modelfile: what it says, writing it, and handing it to Ollama."""

from ggprune.publish.ollama.create import create, create_commands
from ggprune.publish.ollama.modelfile import Modelfile, make_modelfile, write_modelfile

__all__ = ["Modelfile", "create", "create_commands", "make_modelfile", "write_modelfile"]
