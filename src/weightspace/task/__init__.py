"""Tasks: labelled examples with a loss, data sets, accuracy, and gradients of the loss in the weights."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "losses": ["IGNORED"],
        "task": ["Task"],
        "examples": ["TaskError"],
        "classification": ["accuracy", "classifies"],
        "goal": ["as_goal", "Goal", "gradient", "not_aliased", "value_and_gradient"],
        "homotopies": ["Homotopy", "homotopy"],
        "outputs": ["logits"],
        "datasets": ["cifar10", "digits", "fashion_mnist", "mnist"],
        "data_files": ["read"],
        "texts": ["next_token"],
        "processes": ["sharded", "Sharded"],
        "weightspace.net.inputs": ["carried"],
    },
    {"weightspace.net.WeightspaceError": ["GoalError"]},
)
