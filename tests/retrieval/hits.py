from rag_fti.schemas import Hit


def hit(name: str, score: float) -> Hit:
    return Hit(
        chunk_id=name,
        document_id="d",
        document_version="v",
        source="s",
        title="",
        heading="",
        page=None,
        start=0,
        end=1,
        text="x",
        score=score,
    )
