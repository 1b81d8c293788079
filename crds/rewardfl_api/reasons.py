"""What each condition reason means and what to do about it. docs/operations.md is generated from this table."""

from dataclasses import dataclass

from .errors import Reason


@dataclass(frozen=True)
class Explanation:
    """Cause and remedy of a reason. The remedy is empty where nothing has to be done."""

    cause: str
    remedy: str = ""


EXPLANATIONS: dict[Reason, Explanation] = {
    Reason.ACCEPTED: Explanation("The resource is valid."),
    Reason.INVALID_SPEC: Explanation(
        "The spec contradicts itself, or names something that this version does not have.",
        "Change the field that the message names; the job starts as soon as it is valid.",
    ),
    Reason.INVALID_TEMPLATE: Explanation(
        "spec.template asks for what the operator's podPolicy forbids, or the API server refuses the merged pod.",
        "Change the field that the message names, or let the chart's podPolicy allow it.",
    ),
    Reason.QUEUED: Explanation("The job waits in its queue (Kueue holds it suspended).", "Wait, or look at the queue's quota."),
    Reason.SUSPENDED: Explanation("runPolicy.suspend is true.", "Set it to false to go on."),
    Reason.PODS_PENDING: Explanation("Pods were made and do not run yet."),
    Reason.UNSCHEDULABLE: Explanation(
        "No node has room for a pod; the message is the scheduler's.",
        "Free or add nodes, or lower gpusPerNode, or the template's resources, node selector or tolerations.",
    ),
    Reason.IMAGE_PULL_FAILED: Explanation(
        "A node cannot pull an image.", "Check spec.image and the pull secret; pods go on as soon as it can be pulled."
    ),
    Reason.SECRET_MISSING: Explanation(
        "storage.credentialsSecretName names a Secret, or a key of it, that does not exist in the job's namespace.",
        "Create it with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; pods go on by themselves.",
    ),
    Reason.VOLUME_MISSING: Explanation(
        "A volume cannot be mounted, for example a claim that does not exist.",
        "Create the claim that cache.persistentVolumeClaim names, or change it.",
    ),
    Reason.QUOTA_EXCEEDED: Explanation(
        "A ResourceQuota of the namespace has no room for the job's pods; the message is the API server's.",
        "Wait until other pods end, raise the quota, or lower nodes, gpusPerNode or the template's resources; "
        "the job goes on by itself.",
    ),
    Reason.ADMISSION_REFUSED: Explanation(
        "The cluster does not let the job's pods in for now: the namespace's pod security level, a LimitRange, an admission "
        "webhook, or a class that does not exist; the message is the API server's.",
        "Change what the message names, in spec.template or in the namespace; the job goes on by itself.",
    ),
    Reason.STAGING: Explanation("Models and dataset are being fetched."),
    Reason.PREPARING: Explanation("Models are being loaded and the dataset is checked."),
    Reason.TRAINING: Explanation("Training runs."),
    Reason.SAVING: Explanation("Results are being written and uploaded."),
    Reason.COMPLETED: Explanation("Training ended and its results are in the output folder."),
    Reason.RESTARTING: Explanation(
        "A pod failed in a way that may pass, and pods start again; the message says why it failed.",
        "Nothing, unless it repeats; runPolicy.backoffLimit bounds it.",
    ),
    Reason.DEADLINE_EXCEEDED: Explanation(
        "The job ran longer than runPolicy.activeDeadlineSeconds.", "Raise it, or train fewer steps."
    ),
    Reason.BACKOFF_LIMIT_EXCEEDED: Explanation(
        "Pods failed more often than runPolicy.backoffLimit allows; the message says why the last one failed.",
        "Mend the cause and create the job again.",
    ),
    Reason.OUT_OF_MEMORY: Explanation(
        "A process needed more memory than it was given.",
        "On a GPU: deepspeed.preset zero2_cpuoffload or zero3_cpuoffload, useGradientCheckpointingOffload; with another output, "
        "fewer frames or pixels. In a pod (exit code 137): a higher memory limit in spec.template.",
    ),
    Reason.DISRUPTED: Explanation("A pod was evicted or preempted. It is not counted as a failure and starts again."),
    Reason.PROGRESS_CURRENT: Explanation("The trainer reports, and the figures in the status are its latest."),
    Reason.EARLIER_ATTEMPT: Explanation(
        "The pods were started again, and the figures in the status are those of the attempt before, until the trainer reports."
    ),
    Reason.TRAINER_SILENT: Explanation(
        "The trainer has not reported for much longer than a step takes, though its pods run.",
        "Look at the log (`kubectl logs`) for a rank that hangs. Deleting its pod starts all ranks again from the last "
        "checkpoint.",
    ),
    Reason.GUARD_ARMED: Explanation(
        "No rule of spec.guard is broken, or the job was let go on after one was; it counts anew then."
    ),
    Reason.HELD_OUT_REWARD_FELL: Explanation(
        "The guard: the held-out reward was worse than at its best for guard.heldOut.patience evaluations in a row, while the "
        "training reward rose: the model learns its rows, or how to please the reward, and no longer the task.",
        "Use the checkpoint that status.results.bestCheckpoint names. Before training on: a lower learningRate or a higher "
        "klWeight; with another output, a smaller loraRank or more rows.",
    ),
    Reason.KL_TOO_HIGH: Explanation(
        "The guard: the KL to the untrained model, as a mean over guard.kl.steps steps, has passed guard.kl.max.",
        "Look at the report's videos for flicker, saturated colours or frozen motion. Before training on: a lower learningRate, "
        "a higher klWeight, or a higher bound where the videos are good.",
    ),
    Reason.FACES_VANISHED: Explanation(
        "The guard: the share of generated frames without a face, as a mean over guard.noFace.steps steps, has passed "
        "guard.noFace.maxFraction.",
        "Look at the report's videos. Before training on: a missingFacePenalty below what a poor face scores, a lower "
        "learningRate or a higher klWeight; with another output, rows whose face is large and in front.",
    ),
    Reason.BAD_USAGE: Explanation(
        "A program of the image was started with wrong arguments.", "Remove the override from spec.template."
    ),
    Reason.BAD_CONFIGURATION: Explanation(
        "The trainer refused its configuration, or it does not fit the models found.", "Change the field that the message names."
    ),
    Reason.BUCKET_NOT_FOUND: Explanation(
        "A bucket does not exist.", "Check the URI that the message names, and storage.endpoint."
    ),
    Reason.OBJECT_NOT_FOUND: Explanation(
        "A file, or everything below a folder, is not in the bucket.",
        "Check the URI that the message names, and upload what is missing.",
    ),
    Reason.STORAGE_ACCESS_DENIED: Explanation(
        "The storage refused the credentials, or their permission for this bucket.",
        "Check the Secret that storage.credentialsSecretName names, and the bucket's policy.",
    ),
    Reason.STORAGE_UNAVAILABLE: Explanation(
        "The storage could not be reached, or answered with errors, after all retries.",
        "Check storage.endpoint and the network between the cluster and it; the job tries again by itself.",
    ),
    Reason.STAGED_FILE_CORRUPT: Explanation(
        "A file differed from what the storage had announced, also after it was fetched again.",
        "Leave the objects unchanged while jobs stage them; check the cache volume's disk.",
    ),
    Reason.DISK_TOO_SMALL: Explanation(
        "The cache or work volume, or what running jobs leave of cache.maxSize, is less than is needed, as the message says.",
        "Use a larger cache volume, or make room in it with `rewardfl cache prune`.",
    ),
    Reason.UNSAFE_PATH: Explanation(
        "An object key, file name or link would lead outside its folder, or a file would run code when loaded.",
        "Rename or replace the file that the message names.",
    ),
    Reason.HUB_UNAVAILABLE: Explanation(
        "The model hub cannot be reached from the cluster.",
        "Copy the files to your bucket and name that in training.modelPaths, rewardModelPath or tokenizerPath.",
    ),
    Reason.MODEL_NOT_FOUND: Explanation(
        "A model file is missing or cannot be read.", "Check the parameter that the message names."
    ),
    Reason.MODEL_UNKNOWN: Explanation(
        "A model file is none that DiffSynth knows (by the names and shapes of its tensors).",
        "Use the official Wan2.2 files, or put a sidecar `<file>.config.json` beside it (docs/tiny-models.md).",
    ),
    Reason.BAD_DATASET: Explanation(
        "metadata.csv or videos cannot be used; the message lists every bad row.",
        "Mend or remove the rows that the message lists.",
    ),
    Reason.NO_FACE_IN_FIRST_FRAME: Explanation(
        "The first frame of a video shows no face, so there is nobody to stay like.",
        "Replace the videos that the message lists, or set training.onMissingFace to skip.",
    ),
    Reason.DIVERGED: Explanation(
        "The loss or its gradient was NaN or infinite training.maxBadSteps times in a row.",
        "Lower training.learningRate, raise training.klWeight or warmupSteps; the last good save is kept.",
    ),
    Reason.IO_FAILED: Explanation("Reading or writing a file failed.", "Check the volumes; the job tries again by itself."),
    Reason.TERMINATED: Explanation("The process was stopped by SIGTERM (the pod was deleted, evicted or preempted)."),
    Reason.TRAINER_FAILED: Explanation(
        "A program of the image failed in a way that it did not expect; the message is its error.",
        "Look at the log (`kubectl logs`); the job tries again by itself.",
    ),
}


def render() -> str:
    """Return the table as Markdown, for docs/operations.md."""
    rows = [f"| `{reason.value}` | {text.cause} | {text.remedy or 'nothing'} |" for reason, text in EXPLANATIONS.items()]
    return "\n".join(["| reason | cause | what to do |", "|---|---|---|", *rows]) + "\n"
