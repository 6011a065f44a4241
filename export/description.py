"""What a model file says of itself, in the fields that Xcode, Netron and their like show."""

from export.artifact import ANY_SIZE, LOGITS_ALONE, ModelMetadata

PRODUCER = "Twinhash"
TFLITE_METADATA, TFLITE_FIELDS = "TFLITE_METADATA", 8  # the name of the entry in a .tflite, and fields of its table
NOT_STATED = "not stated"  # of what nobody said: whose a model is, and who may use it, only its owner knows


def summarize(metadata: ModelMetadata) -> str:
    """Return one line: what the model does, which network it is, and with whose codes its own can be compared."""
    side = f"{metadata.size} x {metadata.size} pixels"
    image = f"an RGB image, which it makes {side}" if metadata.layout == ANY_SIZE else f"an RGB image of {side}"
    code = f"a binary code of {metadata.bits} bits"
    if metadata.layout == LOGITS_ALONE:
        code = f"{metadata.bits} logits, the signs of a binary code"
    return (
        f"Query encoder for image retrieval: {image}, to {code}, which is compared by Hamming distance with the codes "
        f"of a gallery of code space {metadata.code_space}. Student {metadata.student}, {metadata.precision}."
    )


def describe_tensors(metadata: ModelMetadata) -> dict[str, str]:
    """Return a line for each input and output, by name."""
    count = metadata.bits // 8
    return {
        "image": f"The image by rule {metadata.rule}: upright, sRGB, on white, 0..255; normalisation is inside.",
        "codes": f"The code: {count} bytes, bit j in byte j / 8 at place j % 8.",
        "logits": f"The {metadata.bits} numbers whose signs are the bits.",
    }


def authorship(metadata: ModelMetadata) -> dict[str, str]:
    """Return author, license and version of the model, each as it was stated."""
    version = str(metadata.model_version) if metadata.model_version else NOT_STATED
    return {
        "author": metadata.author or NOT_STATED,
        "license": metadata.license or NOT_STATED,
        "version": version,
    }


def tflite_metadata(metadata: ModelMetadata) -> bytes:
    """Return a `ModelMetadata` of TensorFlow Lite's metadata schema 1.5 (identifier M001), which viewers show.

    Its table has name, description, version, subgraphs, author, license, in this order.
    """
    import flatbuffers

    builder, stated = flatbuffers.Builder(), authorship(metadata)
    texts = {0: f"{PRODUCER} query encoder, {metadata.bits} bits", 1: summarize(metadata)}
    texts |= {2: stated["version"], 4: stated["author"], 5: stated["license"]}
    places = {slot: builder.CreateString(text) for slot, text in texts.items()}
    builder.StartObject(TFLITE_FIELDS)
    for slot, place in places.items():
        builder.PrependUOffsetTRelativeSlot(slot, place, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"M001")
    return bytes(builder.Output())
