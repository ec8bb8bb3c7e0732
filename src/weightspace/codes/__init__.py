"""The information in the weights about the data: description lengths of networks and tasks, in nats."""

from weightspace.contents import handed_on

__getattr__, __dir__, __all__ = handed_on(
    __name__,
    {
        "weightspace.net.cost": ["Cost"],
        "posterior": ["Gaussian", "Noisy", "stream"],
        "encoding": ["Code", "encode"],
        "quadratic": [
            "Quadratic",
        ],
        "langevin": ["learning_coefficient", "LearningCoefficient", "loss_and_slope"],
        "attribution": ["attributed", "Attribution", "products", "Scaled"],
        "weight_information": [
            "Bracket",
            "cost",
            "flatness_bound",
            "Information",
            "information",
            "Unconverged",
        ],
        "structure_functions": ["Check", "Run", "StructureFunction", "Transition"],
        "sweep": ["random_labels", "structure_function"],
        "scores": ["Embedding", "fitted_head", "head_features", "headless", "logme", "task2vec", "transfer_scores"],
        "transfer": ["task_distance", "task_distances"],
        "task_map": [
            "Distance",
            "TaskMap",
        ],
        "nuisance": [
            "brightness",
            "contrast",
            "effective_information",
            "information_cost",
            "Nuisance",
            "Profile",
            "rotation",
            "translation",
        ],
    },
    {
        "weightspace.net.WeightspaceError": [
            "InformationError",
            "LearningError",
            "NuisanceError",
            "PosteriorError",
            "QuadraticError",
            "ScoreError",
            "StructureError",
            "TransferError",
        ]
    },
)
